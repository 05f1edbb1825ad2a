"""vLLM's command lines: five scenarios, the names that older texts use, and vLLM's own judgement of both."""
