package proxy

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/airstream-io/airstream/internal/link"
	"github.com/airstream-io/airstream/internal/link/wire"
)

// metrics are what an operator watches. None has a label for nodes or images:
// there may be thousands.
type metrics struct {
	registry *prometheus.Registry
	chunks   *prometheus.CounterVec
	content  *prometheus.CounterVec
	payload  *prometheus.CounterVec
	refusals *prometheus.CounterVec
	sessions prometheus.Counter
	images   prometheus.Counter
	encoding prometheus.Histogram
}

// laneNames are the values of the label "lane".
var laneNames = [link.NumLanes]string{link.Demand: "demand", link.Hot: "hot", link.Rest: "rest"}

func newMetrics(s *Server) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	vec := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "airstream_proxy_" + name, Help: help}, []string{label})
		m.registry.MustRegister(v)
		return v
	}
	m.chunks = vec("chunks_total", "Chunks that were sent.", "lane")
	m.content = vec("content_bytes_total", "Bytes of content that was sent, decoded.", "lane")
	m.payload = vec("payload_bytes_total", "Bytes of content that was sent, as it crossed.", "lane")
	m.refusals = vec("refusals_total", "Requests that were refused.", "reason")
	m.sessions = prometheus.NewCounter(prometheus.CounterOpts{Name: "airstream_proxy_sessions_total", Help: "Sessions that were opened."})
	m.images = prometheus.NewCounter(prometheus.CounterOpts{Name: "airstream_proxy_images_total", Help: "Images that were sent as far as they were asked for."})
	m.encoding = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "airstream_proxy_chunk_seconds", Help: "Time to read and compress a chunk.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
	})
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "airstream_proxy_" + name, Help: help}, value)
	}
	m.registry.MustRegister(
		m.sessions, m.images, m.encoding,
		gauge("sessions", "Sessions that are open.", func() float64 { return float64(s.numSessions()) }),
		gauge("nodes", "Nodes that are here.", func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(len(s.sessions))
		}),
		gauge("registries_down", "Registries that did not answer when they were last asked.", func() float64 { return float64(len(s.Down())) }),
		gauge("cache_bytes", "Bytes in the cache.", func() float64 { n, _, _ := s.cache.usage(); return float64(n) }),
		gauge("cache_hits", "Reads of the cache that found what they looked for, since the start.", func() float64 { _, n, _ := s.cache.usage(); return float64(n) }),
		gauge("cache_misses", "Reads of the cache that did not, since the start.", func() float64 { _, _, n := s.cache.usage(); return float64(n) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func (m *metrics) refused(r wire.Reason) {
	m.refusals.WithLabelValues(strings.ToLower(strings.TrimPrefix(r.String(), "REASON_"))).Inc()
}

func (m *metrics) chunk(lane link.Lane, content, payload int) {
	l := laneNames[lane]
	m.chunks.WithLabelValues(l).Inc()
	m.content.WithLabelValues(l).Add(float64(content))
	m.payload.WithLabelValues(l).Add(float64(payload))
}

func (m *metrics) encoded(took time.Duration) { m.encoding.Observe(took.Seconds()) }
