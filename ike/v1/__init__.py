"""IKEv1 (RFC 2407, 2408, 2409) is not spoken yet: a policy that names it is refused when it is loaded."""
