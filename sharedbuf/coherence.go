// SPDX-License-Identifier: Apache-2.0

package sharedbuf

// A Coherence says how the two sides of a shared directory see each other's
// stores.
type Coherence int

// The kinds of coherence.
const (
	// PagesShared: both sides map the same pages. Nothing is to be done.
	PagesShared Coherence = iota
	// WrittenThrough: the sides have caches of their own. Before a hand-off the
	// guest writes its stores through; after it drops what it has cached.
	WrittenThrough
)

// CoherenceOf returns what a directory gives that is on the named kind of file
// system, as statfs(2) knows it, or Windows: "tmpfs", "ext4", "9p", "ntfs", ... Kinds whose other side
// is elsewhere, and unknown ones, are WrittenThrough. (virtiofs is a kind of
// "fuse"; with DAX it shares pages, which cannot be told from here.)
func CoherenceOf(system string) Coherence {
	switch system {
	case "tmpfs", "ramfs", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "overlay", "vfat", "ntfs", "refs", "exfat", "fat32":
		return PagesShared
	}
	return WrittenThrough
}

// String says it in a few words.
func (c Coherence) String() string {
	if c == PagesShared {
		return "pages shared"
	}
	return "written through"
}
