"""Where the recordings of many hosts are kept: Parquet in a directory or behind any fsspec URL."""
