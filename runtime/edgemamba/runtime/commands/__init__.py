"""One module for each verb of the command line that the runtime brings."""
