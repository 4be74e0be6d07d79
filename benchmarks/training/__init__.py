"""Training measured: against a loop without any framework, and how much memory ZeRO's stages take."""
