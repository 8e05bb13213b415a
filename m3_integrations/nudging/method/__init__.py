"""The NUDGE methods: pulls, closed forms, trajectories."""
