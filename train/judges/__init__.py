"""What training is judged by: the loss terms and the frozen networks behind them."""
