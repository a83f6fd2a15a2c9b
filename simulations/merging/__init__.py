"""Final quality of whole federated runs, strategy by strategy."""
