"""Messages to the webhook of a model: their content, the outbox, and how they are sent. Runs in the driver."""
