"""Engines: where trajectories come from and who scores them. An engine knows of no tab, run or objective."""
