"""DICOM over the network, shared by sources and sinks: addresses, the spool, the C-STORE SCP and SCU, DICOMweb.

Needs pynetdicom for ``dimse://`` and dicomweb-client for ``dicomweb://``; both are imported where they are first used.
"""
