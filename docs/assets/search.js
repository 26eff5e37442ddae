// A browser starts no worker from a file: where the site is opened without a server, the search runs in a hidden frame.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      document.body.append(frame)
      this.frame = frame.contentWindow
      this.ready = new Promise((loaded) => (frame.onload = loaded))
      window.addEventListener('message', (event) => {
        if (event.source === this.frame) this.dispatchEvent(new MessageEvent('message', { data: event.data }))
      })
      const answer = "<script>postMessage = (data) => parent.postMessage(data, '*')</script>"
      frame.contentDocument.write(`${answer}<script src="${url}"></script>`)
      frame.contentDocument.close()
    }

    postMessage(data) {
      this.ready.then(() => this.frame.dispatchEvent(new MessageEvent('message', { data })))
    }
  }
}
