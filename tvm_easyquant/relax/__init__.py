"""The host with Relax: today's apache-tvm. Nothing else imports it."""
