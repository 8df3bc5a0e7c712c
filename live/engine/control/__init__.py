"""How clients reach the engine: what they may ask and say, and what requests carry."""
