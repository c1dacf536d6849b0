// A/B: a second clip beside the first, or under a wipe. The scrub bar is that of the first; clips of other lengths or
// rates are at the same part of their time.

class Zs2Compare {
    constructor(player) {
        this.player = player;
        this.track = new Zs2Track('B', () => this._loaded());
        this.track.element.hidden = true;
        this.chooser = zs2Select('Compared with', [], () => this._chosen());
        this.chooser.hidden = true;
        const more = {'aria-pressed': 'false'};
        this.button = zs2IconButton('compare', 'Compare two clips', () => this.toggle(), more);
        this.mode = zs2Select('View', [['beside', 'Side by side'], ['wipe', 'Wipe']], () => this._arrange());
        this.swap = zs2TextButton('Swap A and B', () => this._swap());
        const range = {type: 'range', min: 0, max: 100, value: 50, class: 'zs2-wipe', hidden: true};
        this.wipe = zs2Element('input', {...range, 'aria-label': zs2Words('Wipe'), oninput: () => this._arrange()});
        this.element = zs2Element('div', {class: 'zs2-compare', hidden: true}, this.mode, this.swap);
    }

    get on() {
        return !this.element.hidden;
    }

    toggle() {
        if (this.on) this.stop();
        else this.start();
    }

    // With the clip given, or the one that was shown before, or the first other one there is.
    start(clip = null) {
        const {player} = this;
        const others = [clip, player.before, ...player.groups.flatMap(([, clips]) => clips)];
        const other = others.find(candidate => candidate && candidate.name !== player.clip?.name);
        if (!other) {
            player.tell('choices');
            player.say(zs2Words('There is no other clip to compare with.'));
            return;
        }
        this._show(true);
        this.track.show(other);
        this.offer();
        this.follow();
        if (player.track.playing) this.play();
    }

    stop() {
        if (this.on) this.track.clear();
        this._show(false);
    }

    _show(on) {
        for (const element of [this.element, this.chooser, this.track.element]) element.hidden = !on;
        this.button.setAttribute('aria-pressed', on);
        this.player.element.classList.toggle('zs2-comparing', on);
        this._arrange();
    }

    _arrange() {
        const wipes = this.on && this.mode.value === 'wipe';
        this.player.element.classList.toggle('zs2-wiping', wipes);
        this.wipe.hidden = !wipes;
        this.player.stage.style.setProperty('--zs2-wipe', `${this.wipe.value}%`);
        this.track.element.style.clipPath = wipes ? `inset(0 0 0 ${this.wipe.value}%)` : '';
    }

    offer() {
        if (this.on) zs2FillChooser(this.chooser, this.player.groups, this.track.clip);
    }

    _chosen() {
        const clip = zs2ChosenClip(this.chooser, this.player.groups);
        if (clip) this.track.show(clip);
        this.follow();
        if (this.player.track.playing) this.play();
    }

    _swap() {
        const [a, b, frame, playing] = [this.player.clip, this.track.clip, this.player.track.part, this.player.track.playing];
        this.track.show(a);
        this.player.show(b, playing);
        if (!playing) this.player.seek(Math.floor(frame * this.player.frames));
        this.offer();
    }

    clipChanged() {
        this.follow();
        if (this.on && this.player.track.playing) this.play();
    }

    _loaded() {
        if (this.on && !this.player.track.playing && !this.track.video.seeking) this.follow();
    }

    play() {
        if (!this.on) return;
        this.keepUp();
        this.track.play();
    }

    // The same part of its time as the first clip is at, which stands still.
    follow() {
        if (!this.on) return;
        const {track} = this.player;
        this.track.pause();
        const frame = Math.floor((track.frame + 0.5) / track.frames * this.track.frames);
        if (this.track.frame !== frame || this.track.wanted === null) this.track.seek(frame);
    }

    // While both play: as fast as makes both last equally long, and set right where they are apart.
    keepUp() {
        if (!this.on || !this.player.track.playing) return;
        const {track} = this.player;
        const rate = zs2Clamp(track.video.playbackRate * this.track.seconds / track.seconds, 0.0625, 16);
        if (Math.abs(this.track.video.playbackRate - rate) > 1e-3) this.track.video.playbackRate = rate;
        const apart = Math.abs(this.track.part - track.part);
        const seconds = Math.min(apart, 1 - apart) * this.track.seconds;
        if (seconds > Math.max(0.1, 1 / this.track.fps) && !this.track.video.seeking) {
            this.track.video.currentTime = track.part * this.track.seconds;
        }
        if (this.track.video.paused) this.track.play();
    }
}
