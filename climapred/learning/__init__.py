"""Windows, loader, training, trained models and their forecasts."""
