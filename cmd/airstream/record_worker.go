package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/airstream-io/airstream/record"
	"github.com/airstream-io/airstream/snapshotter/layerfs"
)

const recordWorkerVerb = "record-worker"

// newRecordWorkerCommand makes the verb that convert --record runs in namespaces
// of its own. It is not for people.
func newRecordWorkerCommand(std streams) *cobra.Command {
	return &cobra.Command{
		Use:    recordWorkerVerb,
		Short:  "Record a container (used by airstream convert --record)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			out := os.NewFile(3, "report")
			defer out.Close() //nolint:errcheck // the process ends
			log := slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
			return runtimeError(record.Work(c.Context(), std.in, out, record.Mount{
				DirName: layerfs.DirName,
				Serve: func(dir string, layers *record.Layers) error {
					// It is served until the process ends.
					_, err := layerfs.Mount(dir, recordedLayers{layers}, layerfs.Options{Logger: log, Observer: layers, CacheOnly: true})
					return err
				},
			}))
		},
	}
}

// recordedLayers joins the recorder to the FUSE tree.
type recordedLayers struct{ *record.Layers }

// Open implements layerfs.Layers.
func (l recordedLayers) Open(ctx context.Context, slot, entry uint32) (layerfs.Content, error) {
	return l.Layers.Open(ctx, slot, entry)
}
