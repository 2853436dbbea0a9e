"""Messages to the webhook of a model: what they say, how they wait, how they are sent. Runs in the driver."""
