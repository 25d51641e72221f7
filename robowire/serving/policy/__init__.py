"""The policy service: validation, batching, dispatch, temporal ensembling."""
