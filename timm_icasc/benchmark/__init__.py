"""What ICASC costs: a training step, attention maps, and the operations that both ask for."""
