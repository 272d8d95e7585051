package layerfs

// Observer is told what is looked up in layers, once the answer is known. What
// the kernel answers from its own cache it isn't told. Its methods may be called
// concurrently, hold up the request, and must not use the tree.
type Observer interface {
	// Lookup says that name was looked for in the directory dir of a layer.
	Lookup(slot, dir uint32, name string, found bool)
	// List says that the names in the directory dir of a layer were listed, with
	// their attributes.
	List(slot, dir uint32)
}
