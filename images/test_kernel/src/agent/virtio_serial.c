/* virtio-serial over the legacy virtio-pci interface (VIRTIO 1.1, 4.1.4.8 and 5.3), with the
 * multiport control protocol. Polled: the agent's thread looks at the rings at each clock tick. */
#include "agent.h"

enum { VENDOR = 0x1AF4, CONSOLE_DEVICE = 0x1003, FEATURE_MULTIPORT = 2 };
/* registers in I/O space */
enum { HOST_FEATURES = 0, GUEST_FEATURES = 4, QUEUE_PAGE = 8, QUEUE_SIZE = 12 };
enum { QUEUE_SELECT = 14, QUEUE_NOTIFY = 16, DEVICE_STATUS = 18 };
enum { STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4 };
enum { DESCRIPTOR_DEVICE_WRITES = 2, RING_NO_INTERRUPT = 1 };
enum { PORT_DEVICE_READY = 0, PORT_ADD = 1, PORT_READY = 3, PORT_OPEN = 6, PORT_NAME = 7 };
enum { CONTROL_RECEIVE = 2, CONTROL_SEND = 3 };
enum { RECEIVE_BUFFER = 4096, RECEIVE_BUFFERS = 32, SEND_BUFFER = 65536, CONTROL_BUFFER = 128 };

typedef struct _VIRTQUEUE {
    USHORT Number, Size, Seen; /* Seen: used entries already handled */
    struct {
        ULONG64 Address;
        ULONG Length;
        USHORT Flags, Next;
    } * Descriptors;
    volatile struct { USHORT Flags, Index, Ring[]; } * Available;
    volatile struct {
        USHORT Flags, Index;
        struct {
            ULONG Id, Length;
        } Ring[];
    } * Used;
    PUCHAR Buffers; /* one a descriptor, physically contiguous */
    ULONG BufferSize;
} VIRTQUEUE, *PVIRTQUEUE;

typedef struct _PORT_CONTROL {
    ULONG Port;
    USHORT Event, Value;
} PORT_CONTROL;

static USHORT VioPort; /* base of the device's registers */
static VIRTQUEUE VioControlReceive, VioControlSend, VioReceive, VioSend;
static PCSTR VioPortName;
static ULONG VioPortNumber;
ULONG VioSerialHangups;

static void VioPost(PVIRTQUEUE Queue, USHORT Descriptor, ULONG Length) {
    Queue->Descriptors[Descriptor].Length = Length;
    Queue->Available->Ring[Queue->Available->Index % Queue->Size] = Descriptor;
    __asm__ volatile("" ::: "memory"); /* the entry before the index; x86 keeps stores in order */
    Queue->Available->Index++;
}

static void VioNotify(PVIRTQUEUE Queue) {
    __asm__ volatile("" ::: "memory");
    __outword(VioPort + QUEUE_NOTIFY, Queue->Number);
}

/* Gives the device its ring and `Count` buffers; a receive queue is filled with them at once. */
static BOOLEAN VioSetUpQueue(PVIRTQUEUE Queue, USHORT Number, ULONG BufferSize, ULONG Count) {
    __outword(VioPort + QUEUE_SELECT, Number);
    USHORT Size = __inword(VioPort + QUEUE_SIZE);
    if (Size == 0) return FALSE;
    Count = MIN(Count, Size);
    SIZE_T DriverPart = ROUND_TO_PAGES(Size * 16 + 6 + Size * 2);
    PHYSICAL Ring = MiAllocatePages((ULONG)BYTES_TO_PAGES(DriverPart + 6 + Size * 8));
    PHYSICAL Buffers = MiAllocatePages((ULONG)BYTES_TO_PAGES(BufferSize * Count));
    if (Ring == 0 || Buffers == 0) return FALSE;
    PUCHAR Base = MiPhysicalToVirtual(Ring);
    Queue->Number = Number;
    Queue->Size = Size;
    Queue->Seen = 0;
    Queue->Descriptors = (PVOID)Base;
    Queue->Available = (PVOID)(Base + Size * 16);
    Queue->Used = (PVOID)(Base + DriverPart);
    Queue->Buffers = MiPhysicalToVirtual(Buffers);
    Queue->BufferSize = BufferSize;
    Queue->Available->Flags = RING_NO_INTERRUPT;
    BOOLEAN Receive = Number % 2 == 0;
    for (USHORT i = 0; i < Count; i++) {
        Queue->Descriptors[i].Address = Buffers + i * BufferSize;
        Queue->Descriptors[i].Flags = Receive ? DESCRIPTOR_DEVICE_WRITES : 0;
        if (Receive) VioPost(Queue, i, BufferSize);
    }
    __outdword(VioPort + QUEUE_PAGE, (ULONG)(Ring >> PAGE_SHIFT));
    if (Receive) VioNotify(Queue);
    return TRUE;
}

/* Sends through the queue's single buffer. Spins a little before it sleeps: the device is quick. */
static void VioSendBuffer(PVIRTQUEUE Queue, const void *Data, ULONG Length) {
    memcpy(Queue->Buffers, Data, Length);
    VioPost(Queue, 0, Length);
    VioNotify(Queue);
    for (ULONG Tries = 0; Queue->Used->Index == Queue->Seen; Tries++)
        Tries < 50 ? KiStallMicroseconds(20) : KiSleep(1);
    Queue->Seen++;
}

static void VioSendControl(ULONG Port, USHORT Event, USHORT Value) {
    PORT_CONTROL Message = {Port, Event, Value};
    VioSendBuffer(&VioControlSend, &Message, sizeof(Message));
}

static void VioHandleControl(const PORT_CONTROL *Message, ULONG Length) {
    PCSTR Name = (PCSTR)(Message + 1);
    if (Message->Event == PORT_ADD) {
        VioSendControl(Message->Port, PORT_READY, 1);
    } else if (Message->Event == PORT_NAME && VioPortNumber == 0xFFFFFFFF &&
               Length > sizeof(*Message) &&
               strncmp(Name, VioPortName, Length - sizeof(*Message)) == 0) {
        USHORT First = Message->Port == 0 ? 0 : (USHORT)(2 + 2 * Message->Port);
        if (VioSetUpQueue(&VioReceive, First, RECEIVE_BUFFER, RECEIVE_BUFFERS) &&
            VioSetUpQueue(&VioSend, First + 1, SEND_BUFFER, 1)) {
            VioPortNumber = Message->Port;
            VioSendControl(VioPortNumber, PORT_OPEN, 1);
        }
    } else if (Message->Event == PORT_OPEN && Message->Port == VioPortNumber && !Message->Value) {
        VioSerialHangups++;
    }
}

static void VioPollControl(void) {
    PVIRTQUEUE Queue = &VioControlReceive;
    while (Queue->Seen != Queue->Used->Index) {
        USHORT Entry = Queue->Seen++ % Queue->Size;
        USHORT Descriptor = (USHORT)Queue->Used->Ring[Entry].Id;
        VioHandleControl((PVOID)(Queue->Buffers + Descriptor * Queue->BufferSize),
            Queue->Used->Ring[Entry].Length);
        VioPost(Queue, Descriptor, Queue->BufferSize);
        VioNotify(Queue);
    }
}

BOOLEAN VioSerialStart(PCSTR PortName) {
    ULONG Device, Function;
    if (!HalPciFind(VENDOR, CONSOLE_DEVICE, &Device, &Function)) return FALSE;
    VioPort = HalPciRead(0, Device, Function, 0x10) & 0xFFFC;
    /* I/O space and bus mastering on, interrupts off */
    HalPciWrite(0, Device, Function, 4, (HalPciRead(0, Device, Function, 4) & 0xFFFF) | 0x405);
    __outbyte(VioPort + DEVICE_STATUS, 0); /* resets: rings of an earlier boot are forgotten */
    __outbyte(VioPort + DEVICE_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    __outdword(VioPort + GUEST_FEATURES, __indword(VioPort + HOST_FEATURES) & FEATURE_MULTIPORT);
    VioPortName = PortName;
    VioPortNumber = 0xFFFFFFFF;
    /* The control buffers must be there before DEVICE_READY: the device drops what finds no room,
     * and sends up to three messages a port at once. */
    if (!VioSetUpQueue(&VioControlReceive, CONTROL_RECEIVE, CONTROL_BUFFER, 0x10000) ||
        !VioSetUpQueue(&VioControlSend, CONTROL_SEND, CONTROL_BUFFER, 1))
        return FALSE;
    __outbyte(VioPort + DEVICE_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK);
    VioSendControl(0, PORT_DEVICE_READY, 1);
    return TRUE;
}

ULONG VioSerialRead(PUCHAR *Data) {
    /* Taken before the control messages: bytes seen here are then never newer than a hang-up that
     * is still unread, which would throw away the next client's request. */
    USHORT Arrived = VioPortNumber == 0xFFFFFFFF ? 0 : VioReceive.Used->Index;
    VioPollControl();
    if (VioReceive.Seen == Arrived) return 0;
    USHORT Entry = VioReceive.Seen % VioReceive.Size;
    *Data = VioReceive.Buffers + VioReceive.Used->Ring[Entry].Id * RECEIVE_BUFFER;
    return VioReceive.Used->Ring[Entry].Length;
}

void VioSerialReadDone(void) {
    ULONG Descriptor = VioReceive.Used->Ring[VioReceive.Seen++ % VioReceive.Size].Id;
    VioPost(&VioReceive, (USHORT)Descriptor, RECEIVE_BUFFER);
    VioNotify(&VioReceive);
}

void VioSerialWrite(const void *Data, ULONG Length) {
    for (const UCHAR *From = Data; Length > 0;) {
        ULONG Part = MIN(Length, (ULONG)SEND_BUFFER);
        VioSendBuffer(&VioSend, From, Part);
        From += Part;
        Length -= Part;
    }
}
