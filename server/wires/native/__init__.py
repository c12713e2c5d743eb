"""The native wire: `POST /v1/drafts`."""
