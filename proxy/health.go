package proxy

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health is the answer of /healthz.
type health struct {
	Status   string               `json:"status"`         // "ok", or "degraded" while a registry doesn't answer
	Sessions int                  `json:"sessions"`       // that are open
	Nodes    int                  `json:"nodes"`          // that they belong to
	Down     map[string]time.Time `json:"down,omitempty"` // registries that don't answer, and since when
}

// Handler serves /healthz and /metrics. Neither has secrets, and both tell what
// is going on: it belongs on an address that strangers don't reach.
//
// /healthz is 200 as long as the process serves, also while a registry is down:
// nodes get what is cached, and a proxy that is restarted for that would be none
// the better.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := health{Status: "ok", Down: s.Down(), Sessions: s.numSessions()}
		s.mu.Lock()
		h.Nodes = len(s.sessions)
		s.mu.Unlock()
		if len(h.Down) > 0 {
			h.Status = "degraded"
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(h) // whoever asked is gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

func (s *Server) numSessions() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, all := range s.sessions {
		n += len(all)
	}
	return n
}
