// The line to the runtime: speaks `rspp.v1.json`, and comes back when the socket breaks.

const RETRIES = [300, 700, 1500, 3000, 5000];

export class Line extends EventTarget {
  constructor({ rate, token }) {
    super();
    this.format = { rate };
    this.token = token;
    this.wanted = true;
    this.tries = 0;
    this.connect();
  }

  emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  connect() {
    const protocols = ["rspp.v1.json"];
    if (this.token) protocols.push(`rspp.token.${this.token}`);
    const address = new URL("/v1/talk", location);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address, protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.isReady = false;
    socket.onopen = () => {
      const hello = { type: "hello", input: this.format, output: this.format, events: true };
      if (this.ready) {
        const { session, key, connection } = this.ready;
        hello.resume = { session, key, connection, received: this.received };
      }
      socket.send(JSON.stringify(hello));
    };
    socket.onmessage = ({ data }) => this.take(data);
    socket.onclose = ({ code, reason }) => this.closed(socket, code, reason);
  }

  take(data) {
    if (typeof data !== "string") {
      this.received += 1;
      return this.emit("audio", { turn: this.turn, pcm: data });
    }
    const message = JSON.parse(data);
    if (message.type === "ready") return this.begin(message);
    if (this.isReady) this.received += 1;
    if (message.type === "audio_start") this.turn = message.turn;
    if (message.type === "error" && message.code === "cannot_resume") {
      this.ready = undefined;
      this.sent = [];
      return this.emit("forgotten");
    }
    if (message.type === "end") this.wanted = false;
    this.emit(message.type, message);
  }

  begin(ready) {
    const returns = this.ready !== undefined;
    // What the broken connection lost is said again; sound that is old is not.
    const again = returns ? this.sent.slice(ready.received - (this.count - this.sent.length)) : [];
    this.ready = ready;
    this.received = 0;
    this.sent = [];
    this.count = 0;
    this.isReady = true;
    this.tries = 0;
    for (const message of again) if (message) this.say(message);
    this.emit("ready", { ...ready, returns });
  }

  closed(socket, code, reason) {
    if (socket !== this.socket) return;
    this.isReady = false;
    if (!this.wanted) return this.emit("over", { reason });
    const wait = RETRIES[Math.min(this.tries++, RETRIES.length - 1)];
    this.emit("lost", { reason: reason || `code ${code}` });
    this.retry = setTimeout(() => this.connect(), wait);
  }

  note(message) {
    this.count += 1;
    this.sent.push(message);
    if (this.sent.length > 500) this.sent.shift();
  }

  say(message) {
    if (!this.isReady) return false;
    this.note(message);
    this.socket.send(JSON.stringify(message));
    return true;
  }

  speak(pcm) {
    // A line that does not keep up is better silent than late.
    if (!this.isReady || this.socket.bufferedAmount > 64_000) return;
    this.note(null);
    this.socket.send(pcm);
  }

  hangUp() {
    this.wanted = false;
    clearTimeout(this.retry);
    this.say({ type: "bye" });
    this.socket.close(1000);
    if (this.socket.readyState === WebSocket.CLOSED) this.emit("over", { reason: "" });
  }
}
