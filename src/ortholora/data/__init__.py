"""Tasks in memory: reading local files, hub sets and packaged sets, and mixing them into batches."""
