"""What must be protected: the policy model, its text form, and the databases compiled from it (pure)."""
