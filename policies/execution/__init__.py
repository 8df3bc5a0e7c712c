"""How an engine carries out a plan: the rules that the simulator and the live engine share."""
