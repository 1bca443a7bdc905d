"""Many videos on many machines, with Ray: `ingest_many`."""

from videox2l.scale.ingest import IngestRecord, ingest_many, videos_in

__all__ = ["IngestRecord", "ingest_many", "videos_in"]
