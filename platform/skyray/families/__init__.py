"""The scientific systems that live on the engine, one folder each."""
