"""Recordings to batches: manifests, decoding, prepared datasets, loader, synthetic audio."""
