"""An OpenAI endpoint over the engine: requests are answered in one continuous batch."""
