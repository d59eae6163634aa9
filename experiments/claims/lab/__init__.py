"""What the claims share: data, nets, training, statistics, files and the report."""
