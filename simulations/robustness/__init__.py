"""How much a few dishonest sites can spoil: whole federated runs, one for each rule, attack and share of such sites."""
