"""Programs around training: prepare data, evaluate, export."""
