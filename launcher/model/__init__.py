"""Phase 3, model: built, wrapped, averaged. The models that ship are in `launcher.models`."""
