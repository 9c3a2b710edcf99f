// Opens a checkpoint with Go's sumdb/note and checks leaves against it through sumdb/tlog's tile reader.
// Usage: check LOG_DIR VKEY INDEX...; prints the tree's size and each leaf's hash.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type files struct{ dir string }

func (f files) Height() int { return 8 }

func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range tiles {
		// sumdb's names carry the height, C2SP's do not.
		data, err := os.ReadFile(filepath.Join(f.dir, strings.Replace(t.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func (f files) SaveTiles([]tlog.Tile, [][]byte) {}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	raw, err := os.ReadFile(filepath.Join(os.Args[1], "checkpoint"))
	check(err)
	verifier, err := note.NewVerifier(os.Args[2])
	check(err)
	opened, err := note.Open(raw, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	fmt.Println(size)
	reader := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, files{os.Args[1]})
	for _, word := range os.Args[3:] {
		index, err := strconv.ParseInt(word, 10, 64)
		check(err)
		proof, err := tlog.ProveRecord(size, index, reader)
		check(err)
		hashes, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
		check(err)
		check(tlog.CheckRecord(proof, size, root, index, hashes[0]))
		fmt.Printf("%x\n", hashes[0][:])
	}
}
