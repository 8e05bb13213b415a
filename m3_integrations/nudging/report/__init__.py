"""What a nudge changed: outcomes, charts and pages."""
