// Keeps buffers that compiled functions make, until it is told to end. For node --perf-basic-prof.
'use strict';
const kept = [];

function decodeFrame(bytes) {
  return new ArrayBuffer(bytes);
}

function decodeAll(frames) {
  for (let i = 0; i < frames; i++) kept.push(decodeFrame(1 << 20));
}

function work() {
  decodeAll(4);
  if (kept.length === 40) console.log('ready');
  setTimeout(work, 20);
}

process.stdin.on('end', () => process.exit(0)).resume();
work();
