"""Labels, class counts and elements of datasets, as losses, metrics, models and data share them."""
