"""The host TVM 0.19: Relay, AutoTVM, tvmc. Nothing else imports them."""
