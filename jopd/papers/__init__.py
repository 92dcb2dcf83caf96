"""What one paper alone needs, one module per paper."""
