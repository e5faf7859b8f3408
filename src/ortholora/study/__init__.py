"""Studies: single, joint and rules compared over seeds; statistics and report."""
