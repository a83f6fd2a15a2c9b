"""Quality against bytes: whole federated runs of a small pretrained language model, one for each codec."""
