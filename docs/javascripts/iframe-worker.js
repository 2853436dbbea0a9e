// Lets the search work when pages are opened from a folder. Browsers start no worker from a file:// address, so the
// worker's script runs in a hidden frame. The theme's search looks for a class of the name IFrameWorker.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(address) {
      super()
      this.unsent = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<!doctype html>"
      this.frame.addEventListener("load", () => this.start(String(address)), {once: true})
      document.body.append(this.frame)
    }

    // Give the frame what a worker has, run the script in it, and deliver the messages that waited for it.
    async start(address) {
      const scope = this.frame.contentWindow
      const load = source => new Promise((done, failed) => {
        const script = scope.document.createElement("script")
        Object.assign(script, {src: source, onload: done, onerror: failed})
        scope.document.head.append(script)
      })
      scope.importScripts = (...sources) => sources.reduce((all, source) => all.then(() => load(source)), Promise.resolve())
      scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
      await load(address)
      const waiting = this.unsent
      this.unsent = null
      waiting.forEach(data => this.postMessage(data))
    }

    postMessage(data) {
      if (this.unsent) this.unsent.push(data)
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data}))
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
