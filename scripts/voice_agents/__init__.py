"""Other people's voice-agent frameworks in front of the gateway: the parts of try_voice_agents.py."""
