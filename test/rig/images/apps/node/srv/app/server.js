// The rig's web service on node: prints READY once it listens.
'use strict';
const path = require('node:path');
const compression = require('compression');
const express = require('express');
const helmet = require('helmet');
const _ = require('lodash');
const pino = require('pino');
const { WebSocketServer } = require('ws');
const { z } = require('zod');

const log = pino();
const app = express();
app.set('views', path.join(__dirname, 'views'));
app.set('view engine', 'ejs');
app.use(helmet());
app.use(compression());
app.use(express.json());

const reading = z.object({ sensor: z.string(), value: z.number() });
const readings = [];

app.get('/', (req, res) => res.render('index', { bySensor: _.groupBy(readings, 'sensor') }));
app.get('/healthz', (req, res) => res.send('ok\n'));
app.post('/readings', (req, res) => {
  const parsed = reading.safeParse(req.body);
  if (!parsed.success) {
    res.status(400).json(parsed.error);
    return;
  }
  readings.push(parsed.data);
  res.status(201).end();
});

const server = app.listen(3000, '0.0.0.0', () => {
  log.info('listening on 3000');
  console.log('READY');
});
new WebSocketServer({ server });
process.on('SIGTERM', () => process.exit(0));
