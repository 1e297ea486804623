/* The search of the site where it is opened as files. A browser starts no Worker there; the script of the search then
   runs in a hidden frame, which gets and gives messages as a Worker does. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<body></body>";
      this.ready = new Promise((loaded) => {
        this.frame.addEventListener("load", () => {
          const inside = this.frame.contentWindow;
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const tag = inside.document.createElement("script");
          tag.src = script;
          tag.addEventListener("load", loaded);
          inside.document.body.append(tag);
        }, { once: true });
      });
      document.body.append(this.frame);
    }

    async postMessage(data) {
      await this.ready;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
