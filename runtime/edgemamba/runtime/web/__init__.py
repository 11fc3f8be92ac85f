"""The live web page and the metrics endpoint: one small server beside the stream, which no client can slow.

FastAPI, uvicorn and prometheus_client come with the extra ``web`` and are imported only when a server is opened.
"""
