"""Load on an OpenAI endpoint, by locust, of which every answer is compared with the expected one."""
