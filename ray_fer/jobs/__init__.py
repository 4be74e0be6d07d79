"""The jobs: what each checks, in which order it calls the rooms below, and what it answers."""
