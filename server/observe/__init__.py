"""What operators see: metrics, statistics, logs."""
