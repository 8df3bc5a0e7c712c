"""What runs came to: metrics folded over facts, reports, verdicts."""
